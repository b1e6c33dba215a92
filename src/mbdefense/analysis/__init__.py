"""What the paper looks at beyond the rates: each analysis writes its data as JSON and one picture of it."""
