"""From tar shards to packed batches: everything that runs in a data worker, on the CPU, in numpy.

The path of a sample, step by step:

     1. its turn: the n-th draw of a lane is sample i of a pass    order.py     sample_at
     2. its task and its caption, by their weights                 streams.py   SourceStream.sample_at
     3. its files, out of a tar at random                          shards.py    ShardSet.read          -> ShardRecord
     4. left out by a filter, as held out, for its many pieces     streams.py   read_document
     5. its text as tokens, its pieces as latents                  decoding.py  decode_record          -> Document
     6. what is prompt, what is target, one draw of each piece     samples.py   make_sample            -> Sample
     7. too long: dropped, cut, or an error; holes, if it has any  streams.py   fit_sample, excerpts.py
     8. tokens deleted or hidden, pieces noised                    process.py    Process.noise         -> NoisySample
     9. sources mixed by their weights, into the lane's window     lanes.py     Lane._draw
    10. chosen from the window, laid end to end                    choosing.py, packing.py             -> PackedBatch
    11. made ahead of the trainer, with the state of its lane      loader.py, workers.py

Steps 1 to 8 depend on the seed, the pass and the sample's key alone; a lane's state is how far step 1 has come, and
what waits between 9 and 10.
"""
