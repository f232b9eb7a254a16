"""How much the queue, the store and the registry bear."""
