"""Settings and data of the server: model names, the catalogue, installed models, loaded models and their queues."""
