"""What a model can do, and how far it is from its teacher; never changes a weight."""
