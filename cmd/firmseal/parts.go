package main

import (
	"context"

	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/fit"
	"github.com/firmseal/firmseal/internal/image/mcuboot"
	"github.com/firmseal/firmseal/internal/image/raw"
	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/keys/soft"
	"github.com/firmseal/firmseal/internal/server"
)

// formats is the list of image formats. Their order settles a tie in detection.
func formats() image.Registry {
	return image.Registry{
		fit.New(),
		mcuboot.New(),
		raw.New(),
	}
}

// backends is the list of key backends.
func backends() []server.BackendPart {
	return []server.BackendPart{
		{Scheme: "soft", Open: openSoft},
	}
}

func parts() server.Parts { return server.Parts{Formats: formats(), Backends: backends()} }

func openSoft(_ context.Context, s server.KeyStore) (keys.Backend, error) {
	o := soft.Options{Gate: s.Gate, Passphrase: s.Passphrase}
	if s.Identity != "" {
		ids, err := server.Identities(s.Identity, s.Create)
		if err != nil {
			return nil, err
		}
		o.Identities = ids
	}
	return soft.Open(s.Dir, o)
}
