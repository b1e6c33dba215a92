"""What a model makes of rows: scores of their answers, and the texts of prompts that go with them."""
