"""Front ends: plain waveform, frames and features to what the encoders read.

They live inside the network, so that an exported expert takes plain media. None has
parameters, so what they compute may be cached. A clip's result does not depend on the
clips it shares a batch with: STFTs pad with zeros (as does a batch), statistics are taken
over a clip's own frames, and everything behind a clip's end is zero.
"""
