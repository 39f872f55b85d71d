"""Takes in adapters that strangers trained: nothing of them is run, and what is kept is written anew."""
