"""The composition root's verbs that run on a server or machine itself; `backhaul.__main__` puts them together.

Only here and there are real files, clocks and randomness made and handed on. Nothing else imports it. A verb imports
what it starts when it runs, so that an agent loads no server.
"""
