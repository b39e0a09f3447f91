"""The recipe of the embedded tiny SDXL family: data, models, training, evaluation."""
