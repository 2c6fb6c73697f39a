"""How much can go before answers do, on pages that anyone might typeset?"""
