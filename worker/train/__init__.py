"""Training of the retriever and of routers: `python -m worker.train`, started by `ramole train`."""
