"""From an image to an answer: everything that can change the answer, hashed into every cell's id."""
