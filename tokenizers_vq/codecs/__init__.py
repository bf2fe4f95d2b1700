"""Codecs that exist, behind the contract of all tokenizers."""
