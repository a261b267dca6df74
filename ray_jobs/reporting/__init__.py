"""The HTML report of a run: its verdict, tables and figures."""
