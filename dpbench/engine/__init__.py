"""Everything between an encoded image and an answer that can change the answer; hashed into every cell's id."""
