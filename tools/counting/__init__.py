"""Long counting documents: holes filled, pictures made anew, and documents written whole or block by block, judged."""
