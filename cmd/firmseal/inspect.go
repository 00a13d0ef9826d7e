package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/problem"
)

type inspectCmd struct {
	File   string `arg:"" help:"Image, .seal, .tlog-proof or trust root."`
	Format string `short:"f" help:"Read it as this format instead of detecting it." placeholder:"FORMAT"`
}

func (c *inspectCmd) Run(a *app) error {
	f, err := openFile(c.File)
	if err != nil {
		return err
	}
	defer f.Close()
	src, err := fileSource(f)
	if err != nil {
		return err
	}
	all := formats()
	var form image.Format
	if c.Format != "" {
		if form, err = all.ByName(c.Format); err != nil {
			return err
		}
	} else if done, err := c.ours(a, src); done || err != nil {
		return err
	} else if form, _ = all.Detect(src); form == nil {
		if form, err = all.ByName("raw"); err != nil {
			return err
		}
	}
	rep, err := form.Inspect(a.ctx, src)
	if err != nil {
		return err
	}
	_ = a.show("Report", rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s, %d bytes\n", rep.Format, rep.Size)
		fact := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "%-10s %s\n", name, value)
			}
		}
		fact("version", rep.Facts.Version)
		if rep.Facts.SecurityCounter != nil {
			fact("counter", fmt.Sprint(*rep.Facts.SecurityCounter))
		}
		fact("product", rep.Facts.Product)
		fact("boards", strings.Join(rep.Facts.HardwareIDs, ", "))
		for _, s := range rep.Signatures {
			fmt.Fprintf(w, "signature  %s %s key %s%s\n", s.Slot, s.Alg, s.KeyHint, s.KeyID)
		}
		if !rep.Facts.Signed {
			fmt.Fprintln(w, "signature  none")
		}
		for _, n := range rep.Tree {
			printNode(w, n, 0)
		}
		for _, f := range rep.Findings {
			fmt.Fprintf(w, "%s  %s   %s\n", f.Severity, f.What, f.Code)
			if f.Next != "" {
				fmt.Fprintf(w, "      next  %s\n", f.Next)
			}
		}
	})
	if slices.ContainsFunc(rep.Findings, func(f image.Finding) bool { return f.Severity == image.Fatal }) {
		return &exitError{problem.ExitRefused}
	}
	return nil
}

func printNode(w io.Writer, n image.Node, depth int) {
	fmt.Fprintf(w, "%08x %8d  %s%s", n.Off, n.Len, strings.Repeat("  ", depth), n.Name)
	if n.Value != "" {
		fmt.Fprintf(w, "  %s", n.Value)
	}
	fmt.Fprintln(w)
	for _, c := range n.Children {
		printNode(w, c, depth+1)
	}
}

// ours recognises Firmseal's own small files.
func (c *inspectCmd) ours(a *app, src image.Source) (bool, error) {
	if src.Size() > firmseal.MaxEnvelope {
		return false, nil
	}
	b := make([]byte, src.Size())
	if n, err := src.ReadAt(b, 0); n < len(b) {
		return false, problem.New(problem.Usage, "%s cannot be read", c.File).Because(err)
	}
	if env, err := firmseal.ParseEnvelope(b); err == nil {
		st, err := env.Statement()
		if err != nil {
			return true, err
		}
		doc := struct {
			Format    string          `json:"format"`
			SealID    string          `json:"seal_id"`
			KeyIDs    []string        `json:"key_ids"`
			Statement json.RawMessage `json:"statement"`
		}{Format: "seal", SealID: env.ID(), Statement: env.Payload}
		for _, s := range env.Signatures {
			doc.KeyIDs = append(doc.KeyIDs, s.KeyID)
		}
		return true, a.show("Report", doc, func(w io.Writer) {
			fmt.Fprintf(w, "seal %s of %s %s, unchecked; check it with firmseal verify\n", env.ID(), st.Release.Product, st.Release.Version)
			for _, k := range doc.KeyIDs {
				fmt.Fprintf(w, "signature by key %s\n", k)
			}
			printJSON(w, env.Payload)
		})
	}
	if p, err := firmseal.ParseProof(b); err == nil {
		doc := struct {
			Format     string          `json:"format"`
			Index      int64           `json:"index"`
			Hashes     int             `json:"hashes"`
			Leaf       json.RawMessage `json:"leaf,omitempty"`
			Checkpoint string          `json:"checkpoint"`
		}{"tlog-proof", p.Index, len(p.Hashes), nil, string(p.Checkpoint)}
		if json.Valid(p.Extra) {
			doc.Leaf = p.Extra
		}
		return true, a.show("Report", doc, func(w io.Writer) {
			fmt.Fprintf(w, "log proof of entry %d, %d hashes, unchecked; check it with firmseal verify\n", p.Index, len(p.Hashes))
			if doc.Leaf != nil {
				printJSON(w, doc.Leaf)
			}
			fmt.Fprintf(w, "%s", p.Checkpoint)
		})
	}
	if t, err := firmseal.ParseTrustRoot(b); err == nil {
		return true, a.show("Report", map[string]any{"format": "trustroot", "trust_root": json.RawMessage(b)}, func(w io.Writer) {
			fmt.Fprintf(w, "trust root, version %d, %d of %d seal keys (%d in an emergency)\n", t.Version, t.Threshold, len(t.Keys), t.EmergencyThreshold)
			for _, k := range t.Keys {
				fmt.Fprintf(w, "key  %s  %s  %s\n", k.Name, k.Environment, k.ID())
			}
			if t.Log != nil {
				fmt.Fprintf(w, "log  %s  %s  required: %v\n", t.Log.Origin, t.Log.Key, t.Log.Required)
			}
		})
	}
	return false, nil
}

func printJSON(w io.Writer, b []byte) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		fmt.Fprintf(w, "%q\n", b)
		return
	}
	out, _ := json.MarshalIndent(v, "", "  ") // it was JSON just now
	fmt.Fprintf(w, "%s\n", out)
}
