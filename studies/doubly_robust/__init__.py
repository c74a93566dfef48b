"""Does DONE, adversarial training under weights, help the classes that are weakest under attack?"""
