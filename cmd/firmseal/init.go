package main

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/firmseal/firmseal/internal/server"
)

type initCmd struct {
	Dir         string `arg:"" optional:"" help:"Directory to make the workspace in." default:"."`
	Origin      string `help:"Origin of the log, as seal.example.com/firmware." placeholder:"NAME"`
	Database    string `help:"sqlite:FILE or postgres://…; default: SQLite in the workspace." placeholder:"URL"`
	SecondPlace string `name:"second-place" help:"File for the log's last checkpoint, outside the workspace, best on another disk." placeholder:"FILE"`
	Passphrase  bool   `help:"Protect soft keys by a passphrase instead of an identity file."`
}

type initialised struct {
	Workspace   string `json:"workspace"`
	Dir         string `json:"dir"`
	Origin      string `json:"origin"`
	LogKey      string `json:"log_vkey"`
	SecondPlace string `json:"second_place"`
	Identity    string `json:"identity,omitempty"`
}

func (c *initCmd) Run(a *app) error {
	dir := a.g.Workspace
	if dir == "" {
		dir = filepath.Join(c.Dir, server.Dir)
	}
	out, err := a.initWorkspace(server.InitOptions{Dir: dir, Origin: c.Origin, Database: c.Database, SecondPlace: c.SecondPlace, Identity: a.g.Identity}, c.Passphrase)
	if err != nil {
		return err
	}
	return a.show("Workspace", out, func(w io.Writer) {
		fmt.Fprintf(w, "ok    workspace %s in %s\n", out.Workspace, out.Dir)
		fmt.Fprintf(w, "log           %s\n", out.Origin)
		fmt.Fprintf(w, "second place  %s   (keep it when you restore a backup; put it on another disk)\n", out.SecondPlace)
		if out.Identity != "" {
			fmt.Fprintf(w, "identity      %s   (opens the soft keys; back it up apart from them)\n", out.Identity)
		}
		fmt.Fprintln(w, "next  firmseal key create NAME --environment test --product PRODUCT --format FORMAT")
		fmt.Fprintln(w, "      firmseal policy example > firmseal-policy.yaml && firmseal policy apply firmseal-policy.yaml")
	})
}

func (a *app) initWorkspace(o server.InitOptions, passphrase bool) (initialised, error) {
	if passphrase || a.g.PassFD >= 0 {
		o.Passphrase = a.passphrase
	}
	opts := a.options(o.Dir, slog.New(slog.DiscardHandler))
	opts.Identity = ""
	c, err := server.Init(a.ctx, o, opts)
	if err != nil {
		return initialised{}, err
	}
	return initialised{Workspace: c.Workspace, Dir: o.Dir, Origin: c.Origin, LogKey: c.LogKey, SecondPlace: c.SecondPlace, Identity: c.Identity}, nil
}
