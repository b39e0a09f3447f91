"""The recipe of the embedded family: data, models, training, evaluation."""
