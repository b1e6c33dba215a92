"""Commands that look at data and at models, and change neither."""
