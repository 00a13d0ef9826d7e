package main

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
)

func pemOf(spki []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
}

type trustCmd struct {
	Export trustExportCmd `cmd:"" help:"Write the trust root file: seal keys, thresholds, log key."`
}

// exported is what trust export prints.
type exported struct {
	Version   uint64          `json:"version"`
	File      string          `json:"file,omitempty"`
	TrustRoot json.RawMessage `json:"trust_root"`
}

func logOf(t *firmseal.TrustRoot) string {
	if t.Log == nil {
		return "none"
	}
	return t.Log.Origin
}

// bytesOf writes b.
func bytesOf(b []byte) func(w io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(b); return err }
}

type trustExportCmd struct {
	Out string `name:"out" help:"File to write; - for standard output." default:"trustroot.json" placeholder:"FILE"`
}

func (c *trustExportCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		b, err := cl.TrustRoot(a.ctx)
		if err != nil {
			return err
		}
		t, err := firmseal.ParseTrustRoot(b)
		if err != nil {
			return err
		}
		out := exported{Version: t.Version, TrustRoot: b}
		if c.Out != "-" {
			out.File = c.Out
			if err := writeOutput(c.Out, bytesOf(b)); err != nil {
				return err
			}
		}
		return a.show("TrustRoot", out, func(w io.Writer) {
			if c.Out == "-" {
				fmt.Fprintf(w, "%s", b)
				return
			}
			fmt.Fprintf(w, "ok    %s: version %d, %d seal keys, log %s\n", c.Out, t.Version, len(t.Keys), logOf(t))
			fmt.Fprintln(w, "      carry it to where releases are checked by a way that you trust; it holds no secret")
		})
	})
}
