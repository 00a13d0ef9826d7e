package main

import (
	"fmt"
	"io"
)

type versionCmd struct{}

func (c *versionCmd) Run(a *app) error {
	return a.show("Version", map[string]string{"version": version()}, func(w io.Writer) { fmt.Fprintln(w, "firmseal", version()) })
}
