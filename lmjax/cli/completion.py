"""The command completion: a script for bash or zsh, generated from the parsers of the commands."""

import argparse
from collections.abc import Mapping

# The cases match "<number of the word> <command> <word before> <word>"; without a match, file names are completed.
_SCRIPT = """\
_lmjax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "$COMP_CWORD ${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}} $word" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lmjax lmjax
"""
_SHELLS = {"bash": "", "zsh": "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"}
SHELLS = tuple(_SHELLS)


def script(parsers: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """Returns a shell script that completes commands, options, their choices and file names.

    Args:
        parsers: the parser of each command.
        shell: bash | zsh; for zsh, it loads bash's completion functions first.
    """
    cases = []
    for command, parser in parsers.items():
        shown = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
        for option in (name for action in shown if action.choices for name in action.option_strings):
            cases.append((f'*" {command} {option} "*', parser._option_string_actions[option].choices))
        cases.append((f'*" {command} "*" -"*', [name for action in shown for name in action.option_strings]))
        first = next((action.choices for action in shown if not action.option_strings), None)
        if first:
            cases.append((f'"2 {command} "*', first))
    lines = [f'      {pattern}) words="{" ".join(map(str, words))}" ;;' for pattern, words in cases]
    return _SHELLS[shell] + _SCRIPT.format(commands=" ".join(parsers), cases="\n".join(lines))
