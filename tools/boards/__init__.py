"""Boards: small pictures of one to three figures of one kind in one colour, and the sentence that tells of them."""
