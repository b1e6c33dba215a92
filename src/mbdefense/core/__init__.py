"""What every floor stands on: errors, files, hostile text, statistics, specs, processes."""
