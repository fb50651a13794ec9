"""What a run found: its schema, the table of the terminal and the page of the browser."""
