"""The stages of a run: setup, search, fresh seeds, enrolment, test speakers, nested search."""
