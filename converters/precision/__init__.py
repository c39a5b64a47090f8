"""Lower precision written into the graph: portable int8 with Q/DQ pairs, half precision, and the recipe that replays them."""
