"""Property prediction: targets with units, fine-tuning, tables of results."""
