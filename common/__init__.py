"""Small shared helpers of the ramp-up course: nothing in here is what a learner came to learn."""


class UserError(Exception):
    """Something the user can mend; the message is one sentence: what is wrong, and what to do about it."""
