"""One thin script per pipeline stage: parse, call the library, write the outputs."""
