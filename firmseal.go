package firmseal
