package mcuboot

import "github.com/firmseal/firmseal/internal/alg"

// Everything in this file is a number, a name or a plain type of the format.
// It is the one file that the half that makes images and the half that judges
// them have in common; there is no code here that reads or lays out bytes.

// Format is the MCUboot image format. The zero value is ready for use; New
// gives it as an image.Format.
type Format struct{}

const formatName = "mcuboot"

const (
	magic     = 0x96f3b83d
	magicV1   = 0x96f3b83c // the header of 2017 and before; no bootloader reads it any more
	magicNone = 0xffffffff // erased flash

	infoMagic          = 0x6907 // of the TLV area
	infoMagicProtected = 0x6908 // of the protected TLV area, which is hashed

	headerLen  = 32 // the header's own fields; ih_hdr_size pads it
	infoLen    = 4  // magic and total of a TLV area
	tlvHeadLen = 4  // type and length of a TLV

	maxHeaderSize = 0xffff // ih_hdr_size is 16 bits
	maxArea       = 0xffff // it_tlv_tot is 16 bits and counts the info header
	maxSize       = 0xffffffff
)

// Offsets within the header.
const (
	offMagic    = 0
	offLoadAddr = 4
	offHdrSize  = 8
	offProtSize = 10
	offImgSize  = 12
	offFlags    = 16
	offMajor    = 20
	offMinor    = 21
	offRevision = 22
	offBuild    = 24
	offPad      = 28
)

// Header flags.
const (
	flagPIC         = 0x001
	flagAES128      = 0x004
	flagAES256      = 0x008
	flagNonBootable = 0x010
	flagRAMLoad     = 0x020
	flagROMFixed    = 0x100
	flagLZMA1       = 0x200
	flagLZMA2       = 0x400
	flagARMThumb    = 0x800

	flagsEncrypted  = flagAES128 | flagAES256
	flagsCompressed = flagLZMA1 | flagLZMA2 | flagARMThumb
)

// flagNames are imgtool's names, in the order in which dumpinfo prints them.
var flagNames = [...]struct {
	Bit  uint32
	Name string
}{
	{flagPIC, "PIC"},
	{flagAES128, "ENCRYPTED_AES128"},
	{flagAES256, "ENCRYPTED_AES256"},
	{flagNonBootable, "NON_BOOTABLE"},
	{flagRAMLoad, "RAM_LOAD"},
	{flagROMFixed, "ROM_FIXED"},
	{flagLZMA1, "COMPRESSED_LZMA1"},
	{flagLZMA2, "COMPRESSED_LZMA2"},
	{flagARMThumb, "COMPRESSED_ARM_THUMB"},
}

// TLV types.
const (
	tlvKeyHash    = 0x01
	tlvPubKey     = 0x02
	tlvSHA256     = 0x10
	tlvSHA384     = 0x11
	tlvSHA512     = 0x12
	tlvRSA2048    = 0x20
	tlvECDSA224   = 0x21
	tlvECDSA      = 0x22
	tlvRSA3072    = 0x23
	tlvEd25519    = 0x24
	tlvSigPure    = 0x25
	tlvEncRSA     = 0x30
	tlvEncKW      = 0x31
	tlvEncEC256   = 0x32
	tlvEncX25519  = 0x33
	tlvEncX512    = 0x34
	tlvDependency = 0x40
	tlvSecCnt     = 0x50
	tlvBootRecord = 0x60
	tlvDecompSize = 0x70
	tlvDecompSHA  = 0x71
	tlvDecompSig  = 0x72
	tlvCompDec    = 0x73
	tlvVendorUUID = 0x74
	tlvClassUUID  = 0x75

	tlvVendorMin = 0x00a0
	tlvVendorMax = 0xfffe
)

// tlvNames are imgtool's names.
var tlvNames = map[uint16]string{
	tlvKeyHash: "KEYHASH", tlvPubKey: "PUBKEY",
	tlvSHA256: "SHA256", tlvSHA384: "SHA384", tlvSHA512: "SHA512",
	tlvRSA2048: "RSA2048", tlvECDSA224: "ECDSA224", tlvECDSA: "ECDSASIG", tlvRSA3072: "RSA3072",
	tlvEd25519: "ED25519", tlvSigPure: "SIG_PURE",
	tlvEncRSA: "ENCRSA2048", tlvEncKW: "ENCKW", tlvEncEC256: "ENCEC256",
	tlvEncX25519: "ENCX25519", tlvEncX512: "ENCX25519_SHA512",
	tlvDependency: "DEPENDENCY", tlvSecCnt: "SEC_CNT", tlvBootRecord: "BOOT_RECORD",
	tlvDecompSize: "DECOMP_SIZE", tlvDecompSHA: "DECOMP_SHA", tlvDecompSig: "DECOMP_SIGNATURE",
	tlvCompDec: "COMP_DEC_SIZE", tlvVendorUUID: "UUID_VID", tlvClassUUID: "UUID_CID",
}

// A scheme is one row of the format's table of signatures: what MCUboot is
// compiled for, which TLV that is, and which hash goes with it.
type scheme struct {
	Name    string // as profiles name it
	Key     alg.KeyType
	Alg     alg.ID
	SigTLV  uint16
	HashTLV uint16 // the default one
	MaxSig  int    // the largest encoding, for the room that is planned
}

// schemes has no two rows with one key type.
var schemes = [...]scheme{
	{"ecdsa-p256", alg.P256, alg.ECDSAP256SHA256, tlvECDSA, tlvSHA256, 72},
	{"ecdsa-p384", alg.P384, alg.ECDSAP384SHA384, tlvECDSA, tlvSHA384, 104},
	{"rsa-2048", alg.RSA2048, alg.RSA2048PSSSHA256, tlvRSA2048, tlvSHA256, 256},
	{"rsa-3072", alg.RSA3072, alg.RSA3072PSSSHA256, tlvRSA3072, tlvSHA256, 384},
	{"ed25519", alg.Ed25519, alg.Ed25519Pure, tlvEd25519, tlvSHA256, 64},
}

// The last bytes of a slot, for flash that writes at most 8 bytes at once; and
// the last 14 for flash that writes more, which are led by the write size.
var (
	bootMagic     = [16]byte{0x77, 0xc2, 0x95, 0xf3, 0x60, 0xd2, 0xef, 0x7f, 0x35, 0x52, 0x50, 0x0f, 0x2c, 0xb6, 0x79, 0x80}
	bootMagicTail = [14]byte{0x2d, 0xe1, 0x5d, 0x29, 0x41, 0x0b, 0x8d, 0x77, 0x67, 0x9c, 0x11, 0x0f, 0x1f, 0x8a}
)

const (
	defaultMaxSectors = 128
	defaultMaxAlign   = 8
)

// version is the header's own: it has no room for a pre-release.
type version struct {
	Major, Minor uint8
	Revision     uint16
	Build        uint32
}
