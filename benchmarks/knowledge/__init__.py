"""Knowledge graphs with every row in turn, in the filtered setting."""
