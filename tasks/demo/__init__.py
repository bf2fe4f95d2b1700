"""The demo: one small transformer learns captions and handwritten digits together, in one token sequence."""
