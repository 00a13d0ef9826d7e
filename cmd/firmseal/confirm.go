package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/firmseal/firmseal/internal/problem"
)

// confirm lets a person type the name of what is about to end. Without a
// terminal only --yes will do.
func (a *app) confirm(yes bool, name, what string) error {
	if yes {
		return nil
	}
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return problem.New(problem.Usage, "this needs a confirmation").Seen("%s", what).WithHint("add --yes")
	}
	fmt.Fprintf(a.stderr, "%s.\ntype %s to go on: ", what, name)
	line, _ := bufio.NewReader(a.stdin).ReadString('\n') // an early end is a no
	if strings.TrimSpace(line) != name {
		return problem.New(problem.Usage, "not confirmed; nothing was done")
	}
	return nil
}
