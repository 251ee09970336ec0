"""How good a clip is, in numbers: pure functions of frames, flows and fields. A leaf: no stage needs it."""
