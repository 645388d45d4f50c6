"""What a user of refseq2seq imports in tests of another implementation.

`refseq2seq.testing.strategies` has the Hypothesis strategies; it needs
``pip install 'refseq2seq[test]'``.
"""
