"""What compare_trl.py is made of: the rows, the two tools, the floor, the table."""
