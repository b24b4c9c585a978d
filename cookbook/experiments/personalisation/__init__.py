"""E3: documents cost a model its manners; OPD from the original brings them back."""
