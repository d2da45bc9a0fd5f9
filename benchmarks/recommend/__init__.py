"""Users and items with every row in turn, on splits that others have published figures for."""
