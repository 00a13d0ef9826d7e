package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/server"
)

// settings is firmseal.yaml: what a repository's users share.
type settings struct {
	Server    string `yaml:"server"`
	TokenFile string `yaml:"tokenFile"`
	Workspace string `yaml:"workspace"`
	Profile   string `yaml:"profile"`
}

// upward looks for name in the working directory and above, to the root of the
// git checkout if there is one.
func upward(name string) (string, bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p, true
		}
		if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
			return "", false
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", false
		}
		dir = up
	}
}

// settings reads firmseal.yaml; flags and the environment win over it.
func (a *app) settings() (settings, error) {
	var s settings
	path, ok := upward("firmseal.yaml")
	if !ok {
		return s, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return s, problem.New(problem.Usage, "%s cannot be read", path).Because(err)
	}
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&s); err != nil && !errors.Is(err, io.EOF) {
		return s, problem.New(problem.Usage, "%s cannot be used", path).Seen("%s", strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	base := filepath.Dir(path)
	for _, p := range []*string{&s.TokenFile, &s.Workspace} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(base, *p)
		}
	}
	return s, nil
}

// workspaceDir is the workspace that the command works on.
func (a *app) workspaceDir() (string, error) {
	if a.g.Workspace != "" {
		return a.g.Workspace, nil
	}
	s, err := a.settings()
	if err != nil || s.Workspace != "" {
		return s.Workspace, err
	}
	if p, ok := upward(server.Dir); ok {
		return p, nil
	}
	return "", problem.New(problem.WorkspaceMissing, "there is no workspace here or above, and no server was named").
		WithHint("firmseal init")
}
