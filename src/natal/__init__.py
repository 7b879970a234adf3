"""natal."""
