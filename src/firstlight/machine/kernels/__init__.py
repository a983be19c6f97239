"""How the chip is used: operations compiled for one kind of processor, each with a plain twin for others."""
