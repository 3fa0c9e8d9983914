"""What the stand-in remembers: model names, the catalogue, installed models, loaded models and their queues."""
