"""The released model of captioned pictures: who judges it."""
