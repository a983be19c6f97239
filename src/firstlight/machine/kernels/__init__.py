"""Operations compiled for one kind of processor, each with a plain twin for all others."""
