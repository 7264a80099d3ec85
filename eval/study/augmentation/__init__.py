"""Does a classifier learn more from refined samples than from raw ones?"""
