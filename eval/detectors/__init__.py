"""How good the detectors of hallucination are: on known cases, on references and on outputs of `mini`."""
