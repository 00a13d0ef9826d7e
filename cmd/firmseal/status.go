package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/server"
)

type statusCmd struct {
	Config bool `help:"Show each setting and where it comes from."`
}

func (c *statusCmd) Run(a *app) error {
	if c.Config {
		return a.showConfig()
	}
	return a.withClient(func(cl *client.Client) error {
		s, err := cl.Status(a.ctx)
		if err != nil {
			return err
		}
		// A log that goes on has at least its first entry.
		refuses := s.LogSize == 0 || s.Policy != "" && !s.Ready
		lame := 0
		for _, f := range s.Findings {
			if strings.HasPrefix(f.What, "profile ") && strings.Contains(f.What, " cannot sign") {
				lame++
			}
		}
		_ = a.show("Status", s, func(w io.Writer) {
			switch {
			case refuses:
				fmt.Fprintln(w, "Nothing is signed now: the log does not go on.")
			case s.Policy == "":
				fmt.Fprintln(w, "Nothing can be signed yet: no policy is in force.")
			case s.Requests["unknown"] > 0:
				fmt.Fprintf(w, "%d requests wait for a person: a key may have been used and nobody knows.\n", s.Requests["unknown"])
			case lame > 0:
				fmt.Fprintf(w, "Some profiles cannot sign: %d releases, %d requests under way.\n", s.Releases, s.Requests["queued"]+s.Requests["signing"]+s.Requests["sealing"])
			default:
				fmt.Fprintf(w, "Signing works: %d releases, %d requests under way.\n", s.Releases, s.Requests["queued"]+s.Requests["signing"]+s.Requests["sealing"])
			}
			if s.LogSize > 0 {
				fmt.Fprintf(w, "The log has %d entries.\n", s.LogSize)
			}
			for _, f := range s.Findings {
				fmt.Fprintf(w, "%-6s  %s\n", f.Severity, f.What)
				if f.Next != "" {
					fmt.Fprintf(w, "next    %s\n", f.Next)
				}
			}
			fmt.Fprintf(w, "\nworkspace %s   database %s   log %s   firmseal %s\n", s.Workspace, s.Database, s.Origin, s.Version)
		})
		if refuses {
			return &exitError{problem.ExitGate}
		}
		return nil
	})
}

type setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	From  string `json:"from"`
}

// showConfig says which value of each setting holds and where it comes from:
// flag, environment, firmseal.yaml, or default.
func (a *app) showConfig() error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	file, _ := upward("firmseal.yaml")
	pick := func(name, flag, env, fromFile string) setting {
		switch {
		case flag != "" && os.Getenv(env) == flag:
			return setting{name, flag, env}
		case flag != "":
			return setting{name, flag, "flag"}
		case fromFile != "":
			return setting{name, fromFile, file}
		}
		return setting{name, "", "default"}
	}
	list := []setting{
		pick("server", a.g.Server, "FIRMSEAL_SERVER", s.Server),
		pick("token-file", a.g.TokenFile, "FIRMSEAL_TOKEN_FILE", s.TokenFile),
		pick("workspace", a.g.Workspace, "FIRMSEAL_WORKSPACE", s.Workspace),
		pick("identity", a.g.Identity, "FIRMSEAL_IDENTITY", ""),
		pick("profile", "", "", s.Profile),
	}
	if list[2].Value == "" {
		if p, ok := upward(server.Dir); ok {
			list[2] = setting{"workspace", p, "found upward"}
		}
	}
	return a.show("Configuration", map[string]any{"settings": list}, func(w io.Writer) {
		table(w, func(w io.Writer) {
			fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
			for _, s := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, dash(s.Value), s.From)
			}
		})
	})
}
