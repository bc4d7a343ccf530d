"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """Bad input, told in one sentence: the setting, its value and the remedy.

    The command line prints the sentence without a traceback and exits with status 2.

    Examples:
        >>> raise UserError("data.sigma = -1 is negative: give a standard deviation >= 0")
        Traceback (most recent call last):
        lightning_tweedie.errors.UserError: data.sigma = -1 is negative: give a standard deviation >= 0
    """
